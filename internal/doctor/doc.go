// Package doctor looks at a broker, as an application's client sees it, and at the
// machine that the application runs on, and says of each thing that Tidings depends on
// whether it is as it should be.
//
// It changes nothing and leaves nothing behind. A permission is tried by doing what
// needs it: to publish and subscribe, on a subject that nobody else has; to change
// streams, by requests about one that does not exist. What it cannot
// know it says, with the way to find out.
//
// A [Report] has verdicts, for people, and facts, for comparing two environments:
// settings, limits and permissions, but nothing that changes by itself. It holds no
// secret.
package doctor
