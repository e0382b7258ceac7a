"""Networks of containers, without privilege: what is decided, and the parts that need only loopback."""
