"""Bottleneck adapters for inarch: Houlsby's, Pfeiffer's and parallel ones, AdapterHub's files."""
