from rere.cli import main

main()
