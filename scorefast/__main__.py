from scorefast.cli import main

main()
