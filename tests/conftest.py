"""One thread: the models of these tests are too small for two, which then spend their time waiting for each other."""

import torch

torch.set_num_threads(1)
