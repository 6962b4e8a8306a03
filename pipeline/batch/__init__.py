"""`streamkv batch`: a log of questions about archived footage, answered on Ray Data, each once."""
