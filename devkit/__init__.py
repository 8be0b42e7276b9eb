"""Parts of dev.py: environment, hosts, headless server and API client (standard library only)."""
