// SPDX-License-Identifier: GPL-2.0-only
/*
 * The program of the samples in this folder: each kind of memory call once, a thread, a child. With
 * an argument it waits at its end, for a snapshot of its /proc folder.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static char *page;

static void *work(void *arg)
{
	page[30 * 4096] = 1;
	return arg;
}

int main(int argc, char **argv)
{
	char *heap, *big, *shared;
	volatile char seen;
	pthread_t thread;
	pid_t child;
	int i;

	(void)argv;
	page = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (i = 0; i < 24; i++)
		page[i * 4096] = 1;
	seen = page[40 * 4096];
	(void)seen;
	page[40 * 4096] = 2;
	munmap(page + (1 << 19), 1 << 19);
	mprotect(page, 65536, PROT_READ);
	madvise(page + 65536, 16384, MADV_DONTNEED);
	page[17 * 4096] = 3;
	shared = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared[0] = shared[8192] = 1;
	big = malloc(140000);
	memset(big, 1, 140000);
	big = realloc(big, 200000);
	memset(big, 2, 200000);
	heap = sbrk(40000);
	memset(heap, 1, 40000);
	pthread_create(&thread, NULL, work, NULL);
	pthread_join(thread, NULL);
	child = fork();
	if (!child) {
		page[20 * 4096] = 3;
		_exit(0);
	}
	waitpid(child, NULL, 0);
	if (argc > 1)
		pause();
	free(big);
	return 0;
}
