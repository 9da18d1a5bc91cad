"""Everything around the algorithm: runs, probes, sweeps."""
