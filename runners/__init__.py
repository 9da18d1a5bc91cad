"""Infrastructure of experiments: runs on disk, probes, scores, videos, sweeps."""
