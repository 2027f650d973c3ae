"""The grader: it runs what students hand in, in a box, and tells scores, reasons and what needs a person.

    python -m grading check row_softmax my_file.py    the tests of an exercise on a file, in seconds

``python -m grading --help`` lists the rest. The tests of an exercise are ordinary pytest files
whose ``student`` fixture holds the functions of the file. They run out here, where the expected
values are; what a student wrote runs only in a process of its own, and plain data cross.
"""
