"""Commands that print figures. With --json each prints one object: machine, versions, figures."""
