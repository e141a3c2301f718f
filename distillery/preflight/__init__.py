"""What can be known before a token is paid for is checked here."""
