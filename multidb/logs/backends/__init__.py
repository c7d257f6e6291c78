"""Where logs are kept. Each module is imported only when its backend is built."""
