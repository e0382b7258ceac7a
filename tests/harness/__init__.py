"""What tests share: what this host can do (`host`), who acts (`users`), and what must not stay behind (`leaks`)."""
