"""`python -m overfeat_tf.cli`."""

from overfeat_tf.cli.main import main

main()
