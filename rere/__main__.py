from rere.cli import main

# Processes that `rere speed` starts import this module anew.
if __name__ == "__main__":
    main()
