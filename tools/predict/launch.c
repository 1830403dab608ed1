// SPDX-License-Identifier: GPL-2.0-only
/*
 * launch - run a command and say what the kernel counted for it
 *
 * usage: launch ASLR FD PROGRAM ARG0 [ARG...]
 *
 * ASLR is 0 or 1. Writes "MINFLT MAXRSS_KB STATUS" to descriptor FD when the command and all it started
 * have ended; MINFLT without what happened before exec, STATUS the command's. A process inherits the largest resident set of what it was forked from and exec'ed by, so
 * that of a small program started by Python would be Python's. This is smaller than any of them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int said[2], status, ended = 0, fd;
	long before = 0, minflt = 0, maxrss = 0;
	struct rusage usage;
	pid_t pid, child;

	/* A child that outlives the command becomes ours. */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		return 126;
	if (argc < 5 || (fd = atoi(argv[2])) < 3 || pipe(said) || (pid = fork()) < 0)
		return 126;
	if (!pid) {
		close(said[0]);
		close(fd);
		fcntl(said[1], F_SETFD, FD_CLOEXEC);
		if (argv[1][0] == '0' && personality(ADDR_NO_RANDOMIZE) < 0)
			_exit(126);
		getrusage(RUSAGE_SELF, &usage);
		before = usage.ru_minflt;
		if (write(said[1], &before, sizeof(before)) == sizeof(before))
			execv(argv[3], argv + 4);
		fprintf(stderr, "%s: %s\n", argv[3], strerror(errno));
		_exit(127);
	}
	close(said[1]);
	if (read(said[0], &before, sizeof(before)) != sizeof(before))
		before = 0;
	while ((child = wait4(-1, &status, 0, &usage)) > 0 || errno == EINTR) {
		if (child < 0)
			continue;
		minflt += usage.ru_minflt;
		if (usage.ru_maxrss > maxrss)
			maxrss = usage.ru_maxrss;
		if (child == pid)
			ended = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	}
	dprintf(fd, "%ld %ld %d\n", minflt - before, maxrss, ended);
	return 0;
}
