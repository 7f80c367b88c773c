"""How robustness is counted: protocols, intervals, records and results."""
