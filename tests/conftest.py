import torch

# Small networks are fastest with one thread, and the number of threads changes bits.
torch.set_num_threads(1)
