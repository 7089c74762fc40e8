"""The playground: a local web page over the evaluation functions, and its JSON API."""
