"""The recipe that made the demo model. docs/demo-model.md tells the steps; `make model` runs them."""
