"""Commands around the agents: sweeps, comparisons, tables, benchmarks, faults."""
