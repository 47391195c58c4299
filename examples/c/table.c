#include <stdlib.h>
#include <string.h>

#include "words.h"

struct table {
	struct entry *slot;
	size_t size, used;
};

struct table *table_new(void)
{
	struct table *t = calloc(1, sizeof *t);

	if (!t)
		return NULL;
	t->size = 64;
	t->slot = calloc(t->size, sizeof *t->slot);
	if (!t->slot) {
		free(t);
		return NULL;
	}
	return t;
}

void table_free(struct table *t)
{
	if (!t)
		return;
	for (size_t i = 0; i < t->size; i++)
		free(t->slot[i].word);
	free(t->slot);
	free(t);
}

size_t table_size(const struct table *t)
{
	return t->used;
}

static struct entry *find(struct entry *slot, size_t size, const char *word, size_t len)
{
	size_t i = hash(word, len) & (size - 1);

	while (slot[i].word && (strncmp(slot[i].word, word, len) || slot[i].word[len]))
		i = (i + 1) & (size - 1);
	return &slot[i];
}

static int grow(struct table *t)
{
	struct entry *bigger = calloc(t->size * 2, sizeof *bigger);

	if (!bigger)
		return -1;
	for (size_t i = 0; i < t->size; i++)
		if (t->slot[i].word)
			*find(bigger, t->size * 2, t->slot[i].word, strlen(t->slot[i].word)) = t->slot[i];
	free(t->slot);
	t->slot = bigger;
	t->size *= 2;
	return 0;
}

int table_add(struct table *t, const char *word, size_t len)
{
	struct entry *e;

	if (t->used * 2 >= t->size && grow(t))
		return -1;
	e = find(t->slot, t->size, word, len);
	if (!e->word) {
		e->word = strndup(word, len);
		if (!e->word)
			return -1;
		t->used++;
	}
	e->count++;
	return 0;
}

static int by_count(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	if (x->count != y->count)
		return x->count < y->count ? 1 : -1;
	return strcmp(x->word, y->word);
}

size_t table_top(const struct table *t, struct entry *out, size_t n)
{
	struct entry *all = malloc((t->used + 1) * sizeof *all);
	size_t k = 0;

	if (!all)
		return 0;
	for (size_t i = 0; i < t->size; i++)
		if (t->slot[i].word)
			all[k++] = t->slot[i];
	qsort(all, k, sizeof *all, by_count);
	if (n > k)
		n = k;
	memcpy(out, all, n * sizeof *all);
	free(all);
	return n;
}
