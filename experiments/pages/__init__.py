"""What README and docs must say, written from the committed tables; `verify_results.py` looks the sentences up."""
