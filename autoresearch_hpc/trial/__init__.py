"""What runs on the compute node: the trusted worker and the trusted evaluator around a candidate's training."""
