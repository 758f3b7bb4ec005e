"""HTTP: what is under `.stats`, for monitoring and scripts, and a status page for people.

    process   the daemon's end: binds, starts the server, answers what it asks
    listen    sockets, bound before the mount starts      token    who may do more than look
    channel   what the two processes say to each other
    worker    the server's process: Starlette on hypercorn
    connections   bytes between clients and hypercorn's protocols
    figures   what it knows of the mount, asked for when needed
    app       paths and answers       guard   who is let in       openapi   the same, described
    page      the status page: HTML that needs no script, and a script that keeps it moving

The server is a process of its own. One request costs it most of a millisecond of Python; a thousand a
second would leave the daemon's event loop little time for files. So the daemon only tells its figures,
at most once in `figures.SHARE` seconds, however many ask. And what strangers send is parsed
where the worst end costs a restart of the server, and no file.

Nothing of it is imported by a mount without `http`, and the libraries never by the daemon.
"""
