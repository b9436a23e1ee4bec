from rere.cli import main

# Benchmarks start processes that import this module again.
if __name__ == "__main__":
    main()
