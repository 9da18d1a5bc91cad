import torch

# Small networks are fastest with one thread, and the number of threads changes bits.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--grid-steps", type=int, default=400, help="steps beside MiniGrid's package, per id")
