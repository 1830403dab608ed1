// SPDX-License-Identifier: GPL-2.0-only
/* Counts of refused orders, of VMAs that go away. The reference is mm/refused.py. */
#include "fault.h"
#include "vma.h"

enum {
	/* VMA_FAULTS and the reasons behind it, the same in a log record: */
	NR_COUNTS = 1 + NR_REFUSED,
	/* Places in VMA_KINDS of mm/policy.py: */
	KIND_ANON = 0,
	KIND_HEAP = 1,
	KIND_STACK = 2,
};

static u64 vma_kind(const struct vk *k, const u64 *vma)
{
	const u64 *mm = k->mm + vma[VMA_MM] * MM_RECORD;
	u64 low = mm[MM_START_BRK], high = mm[MM_BRK];

	if (vma[VMA_FLAGS] & VM_GROWSDOWN)
		return KIND_STACK;
	return low < high && vma[VMA_START] < high && vma[VMA_END] > low ? KIND_HEAP : KIND_ANON;
}

/** move_refused - add a VMA's counts to those of the one that takes its place */
void move_refused(u64 *source, u64 *to)
{
	for (int i = VMA_FAULTS; i < VMA_FAULTS + NR_COUNTS; i++) {
		to[i] += source[i];
		source[i] = 0;
	}
}

/** log_refused - write down the counts of a VMA that goes away, with the process it was of */
void log_refused(struct vk *k, const u64 *vma, u64 task)
{
	const u64 *t = k->task + task * TASK_RECORD;
	u64 record = k->zone[ZONE_VMA_LOG] + 1;
	u64 *log = k->vma_log; /* record 0: the sums of what no longer finds a record */

	if (!vma[VMA_FAULTS])
		return;
	if (record < k->fault[FAULT_NR_VMA_LOGS]) {
		k->zone[ZONE_VMA_LOG] = record;
		log += record * VMA_LOG_RECORD;
		log[LOG_PID] = t[TASK_PID];
		log[LOG_EXECS] = t[TASK_EXECS];
		log[LOG_START] = vma[VMA_START];
		log[LOG_END] = vma[VMA_END];
		log[LOG_FLAGS] = vma[VMA_FLAGS];
		log[LOG_KIND] = vma_kind(k, vma);
	}
	for (int i = 0; i < NR_COUNTS; i++)
		log[LOG_FAULTS + i] += vma[VMA_FAULTS + i];
}
