"""Training: options, optimisation, the loop, what is recorded, and the quickstart."""
