#!/usr/bin/env python3
"""A worker in Python, with nothing but its standard library:

    tidings run -n 2 --listen web=tcp://127.0.0.1:8080 -- ./worker.py

It answers HTTP requests one at a time, as a worker of Unicorn does, with its pid.
QUIT ends it once it has answered what it accepted; so does the end of its master.
TERM and INT end it at once.
"""
import os
import select
import signal
import socket


def listeners():
    """The sockets that the master has opened, from descriptor 3."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []  # they are not meant for us
    sockets = [socket.socket(fileno=3 + i) for i in range(int(os.environ["LISTEN_FDS"]))]
    for s in sockets:
        s.setblocking(False)  # another worker may be faster to accept
    return sockets


def notify(*lines):
    """Tells the manager, if there is one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        if path[0] == "@":  # abstract
            path = "\0" + path[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto("\n".join(lines).encode(), path)


def answer(conn):
    """Reads the head of a request, and answers."""
    conn.settimeout(10)  # a client that says nothing
    with conn, conn.makefile("rb") as request:
        while request.readline().strip():
            pass
        body = f"{os.getpid()}\n"
        conn.sendall(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())


def main():
    sockets = listeners()
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    told = []
    signal.signal(signal.SIGQUIT, lambda *_: told.append("QUIT"))
    signal.signal(signal.SIGUSR1, lambda *_: notify("STATUS=logs opened again"))
    for quick in signal.SIGTERM, signal.SIGINT:
        signal.signal(quick, lambda *_: os._exit(0))
    watched = sockets + [woken]
    if "TIDINGS_PARENT_FD" in os.environ:
        parent = int(os.environ["TIDINGS_PARENT_FD"])  # ends when the master does
        watched.append(parent)
    notify("READY=1", f"STATUS=serving {len(sockets)} sockets")
    while not told:
        for ready in select.select(watched, [], [])[0]:
            if ready is woken:
                woken.recv(4096)
            elif isinstance(ready, int):
                told.append("the master is gone")
            elif not told:
                try:
                    conn, _ = ready.accept()
                except BlockingIOError:
                    continue  # it was: the sockets are everybody's
                try:
                    answer(conn)
                except OSError:
                    pass  # the client is gone
    notify("STOPPING=1", f"STATUS=ends: {told[0]}")


if __name__ == "__main__":
    main()
