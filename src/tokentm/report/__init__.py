"""Pictures and reports, drawn from explanations."""
