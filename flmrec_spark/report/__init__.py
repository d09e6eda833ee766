"""What an evaluation shows: tables on the console, and a page of HTML."""
