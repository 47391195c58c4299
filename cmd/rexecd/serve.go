package main

import (
	"context"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"rexec/internal/daemon"
	"rexec/internal/daemon/config"
)

func serveCommand(o *options) *cobra.Command {
	var listen []string
	c := &cobra.Command{
		Use:   "serve",
		Short: "listen and start a session for each connection",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := config.Read(o.configFile)
			if err != nil {
				return err
			}
			if len(listen) > 0 {
				cfg.Listen = listen
			}
			return serve(o, cfg)
		},
	}
	c.Flags().StringArrayVar(&listen, "listen", nil, "`address` to listen on, such as unix:/run/rexec.sock; repeatable")
	return c
}

func serve(o *options, cfg config.Config) error {
	set, err := o.setting()
	if err != nil {
		return err
	}
	// Signals first: whoever waits for the socket may send one at once.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hups := make(chan os.Signal, 1)
	signal.Notify(hups, syscall.SIGHUP)
	defer signal.Stop(hups)
	listeners, err := listen(cfg.Listen)
	if err != nil {
		return err
	}
	s := daemon.NewServer(set, cfg)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hups:
				s.Reload()
			}
		}
	}()
	_, _ = systemd.SdNotify(false, systemd.SdNotifyReady)
	set.Logf("listening")
	return s.Serve(ctx, listeners)
}

// listen takes the sockets that systemd holds for us, else opens its own.
func listen(addresses []string) ([]net.Listener, error) {
	given, err := activation.Listeners()
	if err != nil {
		return nil, err
	}
	if len(given) > 0 {
		return given, nil
	}
	var list []net.Listener
	for _, a := range addresses {
		l, err := daemon.Listen(a)
		if err != nil {
			for _, l := range list {
				l.Close()
			}
			return nil, err
		}
		list = append(list, l)
	}
	return list, nil
}
