"""What holds for all tests: the same examples in every run, no deadline, one thread."""

import torch
from hypothesis import settings
from transformers.utils.logging import disable_progress_bar

# Deadlines measure the machine, not the code; the same examples each time make a failure repeatable.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# The models of the tests are so small that a second thread costs more than it brings, above all on a busy machine.
torch.set_num_threads(1)

# Bars of loading and saving would stand between the lines that tests read.
disable_progress_bar()
