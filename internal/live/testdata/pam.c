/* A program that authenticates its user by PAM again and again: in a transaction
 * that it keeps, and in others that it begins and ends. Counts "kept.N" and
 * "fresh.N" are of answers by the build N of the module. */
#include "report.h"

typedef struct pam_handle pam_handle;
struct conversation {
	int (*talk)(int, const void **, void **, void *);
	void *data;
};
int pam_start_confdir(const char *, const char *, const struct conversation *, const char *, pam_handle **);
int pam_authenticate(pam_handle *, int);
int pam_end(pam_handle *, int);
const char *pam_getenv(pam_handle *, const char *);

static struct counter *answers[2][2];
static const char *folder;

static int talk(int n, const void **messages, void **responses, void *data)
{
	(void)n, (void)messages, (void)responses, (void)data;
	wrong("the module asked something");
	return 19; /* PAM_CONV_ERR */
}

static const struct conversation conversation = {talk, 0};

static pam_handle *begin(const char *user)
{
	pam_handle *h = 0;
	if (pam_start_confdir("turn", user, &conversation, folder, &h))
		wrong("a transaction can't be begun");
	return h;
}

static void ask(pam_handle *h, struct counter **by)
{
	int status = pam_authenticate(h, 0);
	const char *build = pam_getenv(h, "TURN");
	if (status || !build || (*build != '1' && *build != '2'))
		wrong("status %d, by build %s", status, build ? build : "none");
	else
		bump(by[*build - '1']);
}

static void *work(void *arg)
{
	pam_handle *kept = begin("keeper");
	for (;;) {
		ask(kept, answers[0]);
		pam_handle *h = begin("guest");
		for (int i = 0; i < 3; i++)
			ask(h, answers[1]);
		if (pam_end(h, 0))
			wrong("a transaction can't be ended");
		progressed();
		sleep_ms(1);
	}
	return arg;
}

int main(int argc, char **argv)
{
	folder = argc > 1 ? argv[1] : "";
	answers[0][0] = counter("kept.1");
	answers[0][1] = counter("kept.2");
	answers[1][0] = counter("fresh.1");
	answers[1][1] = counter("fresh.2");
	spawn(work, 0);
	report_serve();
}
