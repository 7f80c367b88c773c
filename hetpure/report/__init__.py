"""What people read: the protocol table, figures and `report.md`."""
