"""Lightning data modules: readers, splits and loaders, no mathematics."""
