// Package spool keeps records on disk, in order, until what they are for is done.
//
// A spool is a bounded queue of byte records that one process owns at a time. It is
// a directory of files that are only appended to; no database is involved.
//
//   - A record is accepted once its callback was called without an error. It is then
//     on the disk: neither kill -9 nor the loss of power takes it away.
//   - Records are read in the order they were accepted in, and numbered from 1
//     without gaps. A record that was not accepted is never read, with two
//     exceptions: after [ErrSync], and when the process died before it could call
//     back. Nothing else is ever read.
//   - What was trimmed is not read again, except after a loss of power, when some of
//     it may be.
//   - The files never hold more than [Options].Max bytes. At that bound, and on a full
//     disk, a record is refused with [ErrFull]; what was accepted before stays, and
//     records are accepted again once there is space.
//   - When its owner has died, whatever way, another process gets the spool from
//     [Adopt]; of two that try, one.
//   - Damage stays where it is. The bytes that cannot be read are copied to a file
//     beside them and named in an error that says which records are missing; all
//     others are read. One thing cannot be told apart: damage to the last records of
//     a spool whose owner died looks like records that it was writing when it died,
//     unless they had been trimmed past or the spool was closed once.
//   - Nothing depends on the clock: a record's time is for humans.
package spool
