"""The examples that put AMB together with others' libraries, run as their first lines say."""
