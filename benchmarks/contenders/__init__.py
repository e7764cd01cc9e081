"""The same job with several libraries, each in a process of its own; see `bench_messages`."""
