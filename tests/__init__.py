"""What several test files share is imported as `tests.…`."""
