"""What is loaded, refused, planned, printed or written.

A line that changes a sampled token, a gradient, a weight or a score stands at the top level. Two
files are exceptions: chat.py has the model's own template written, and judge.py has another model
score.
"""
