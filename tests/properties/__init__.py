"""What must hold for every input, with inputs that Hypothesis makes up."""
