"""What runs in the box beside a student's code: it imports no other part of the grader."""
