"""Search over prompts: what is asked, how it is scored, and the SQL that finds it."""
