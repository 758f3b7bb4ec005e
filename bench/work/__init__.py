"""The work that is measured. Every function takes the directory to work in, a `Meter`, and how much.

They are called by the driver, and return figures: a time in µs as "us" with its percentiles, a rate as
"mibs", a duration as "s". What is not measured (preparing, throwing away) happens outside the clock.
"""
