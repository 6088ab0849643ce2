"""One model on several machines: the plan, each one's part, and how they work together."""
