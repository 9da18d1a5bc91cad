"""Any Gymnasium environments, one by one or in processes, restored by replay."""
