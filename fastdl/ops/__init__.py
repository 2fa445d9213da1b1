"""One room for each operator family; see docs/architecture.md."""
