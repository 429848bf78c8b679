"""Report: what a person reads: terminal tables and exports."""
