package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"rerank.dev/devcluster/internal/cluster"
)

func runCommand() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "devcluster:", err)
		return 1
	}
	return 0
}

// options are those that every command knows.
type options struct {
	name    string
	state   string
	timeout time.Duration
	output  string
}

func (o *options) dir() (cluster.Dir, error) { return cluster.OpenDir(o.state, o.name) }

func rootCommand() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "devcluster",
		Short: "A genuine Kubernetes on this machine, with pods as local processes",
		Long: `devcluster runs a genuine Kubernetes on this machine: etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kubelets.
The kubelets run each container as a plain local process, so neither root nor a container engine is needed. Everything listens on
loopback addresses only, everything lies in one folder, and your own kubeconfig is never touched.

COMPONENT is etcd, apiserver, controller-manager, scheduler or node/NAME.`,
		SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.PersistentFlags().StringVar(&o.name, "name", cluster.DefaultName, "name of the cluster")
	root.PersistentFlags().StringVar(&o.state, "state", cluster.DefaultStateDir, "folder that holds the clusters")
	root.AddCommand(upCommand(o), downCommand(o), statusCommand(o), listCommand(o), podsCommand(o),
		startCommand(o), stopCommand(o), killCommand(o), freezeCommand(o), thawCommand(o))
	for _, tool := range []string{"kubectl", "helm"} {
		root.AddCommand(&cobra.Command{
			Use: tool + " ...", Short: "Run " + tool + " (set KUBECONFIG, or use its --kubeconfig)",
			DisableFlagParsing: true, Run: func(*cobra.Command, []string) {}, // main runs it before any flag is read
		})
	}
	return root
}

// withTimeout gives a command its deadline.
func withTimeout(o *options, c *cobra.Command, limit time.Duration) {
	c.Flags().DurationVar(&o.timeout, "timeout", limit, "how long to wait for it to succeed")
}

func (o *options) context(c *cobra.Command) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.Context(), o.timeout)
}

// progress prints what happens, with the seconds since the start.
func progress(c *cobra.Command) func(string, ...any) {
	start := time.Now()
	return func(format string, args ...any) {
		fmt.Fprintf(c.ErrOrStderr(), "%6.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
}

func upCommand(o *options) *cobra.Command {
	var nodes, gpus, cpuOnly int
	var wanted cluster.Wanted
	c := &cobra.Command{
		Use: "up", Short: "Bring a cluster up, or back up, and wait until it can be used", Args: cobra.NoArgs,
		Long: `Bring a cluster up and wait until the API server is ready, every node is Ready and pods can be made.
A part that already runs is left alone, one that has died is started again, and a cluster stopped with "down --keep-data" comes back
with its data. Nodes can be added to a cluster by asking for more.`,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := o.dir()
			if err != nil {
				return err
			}
			for name, field := range map[string]**int{"nodes": &wanted.Nodes, "gpus": &wanted.GPUs, "cpu-only-nodes": &wanted.CPUOnlyNodes} {
				if c.Flags().Changed(name) {
					value, err := c.Flags().GetInt(name)
					if err != nil {
						return err
					}
					*field = &value
				}
			}
			ctx, cancel := o.context(c)
			defer cancel()
			say := progress(c)
			if _, err := dir.Up(ctx, wanted, say); err != nil {
				return fmt.Errorf("cluster %q is not up: %w", o.name, err)
			}
			say("cluster %q is ready", o.name)
			status, err := dir.Status()
			if err != nil {
				return err
			}
			printStatus(c, status)
			return nil
		},
	}
	c.Flags().IntVar(&nodes, "nodes", 1, "number of nodes with GPUs")
	c.Flags().IntVar(&gpus, "gpus", 4, "nvidia.com/gpu that each of these nodes offers (no real GPU is needed)")
	c.Flags().IntVar(&cpuOnly, "cpu-only-nodes", 0, "number of nodes without GPUs")
	c.Flags().StringArrayVar(&wanted.APIServerFlags, "apiserver-flag", nil, "one more flag for kube-apiserver, e.g. --apiserver-flag=--v=4 (only when the cluster is made)")
	c.Flags().StringArrayVar(&wanted.Path, "path", nil, "folder searched first for the pods' commands, e.g. a virtual environment's bin (only when the cluster is made)")
	withTimeout(o, c, 2*time.Minute)
	return c
}

func downCommand(o *options) *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use: "down", Short: "Stop a cluster with all its pods and remove it", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := o.dir()
			if err != nil {
				return err
			}
			ctx, cancel := o.context(c)
			defer cancel()
			if err := dir.Down(ctx, keep); err != nil {
				return err
			}
			progress(c)("cluster %q is down", o.name)
			return nil
		},
	}
	c.Flags().BoolVar(&keep, "keep-data", false, "keep etcd's data and the certificates for the next up")
	withTimeout(o, c, time.Minute)
	return c
}

func statusCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Show each component: process, state and memory", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := o.dir()
			if err != nil {
				return err
			}
			status, err := dir.Status()
			if err != nil {
				return err
			}
			if o.output == "json" {
				return printJSON(c, status)
			}
			printStatus(c, status)
			return nil
		},
	}
	addOutput(o, c)
	return c
}

func podsCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use: "pods", Short: "Show each running container: its process, address and node", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := o.dir()
			if err != nil {
				return err
			}
			list, err := dir.Pods()
			if err != nil {
				return err
			}
			if o.output == "json" {
				return printJSON(c, list)
			}
			table(c, "NAMESPACE\tPOD\tCONTAINER\tNODE\tPOD IP\tPID\tSTATE\tMEMORY\tMOUNT NAMESPACE", func(row func(...any)) {
				for _, p := range list {
					row(p.Namespace, p.Pod, p.Container, p.Node, p.PodIP, p.PID, p.State, mib(p.RSS), p.MountNamespace)
				}
			})
			return nil
		},
	}
	addOutput(o, c)
	return c
}

func listCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the clusters in the state folder", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			names, err := cluster.Names(o.state)
			for _, name := range names {
				fmt.Fprintln(c.OutOrStdout(), name)
			}
			return err
		},
	}
}

func startCommand(o *options) *cobra.Command {
	return componentCommand(o, "start", "Start a component again, with its address and data, and wait until it is healthy", func(ctx context.Context, c *cobra.Command, d cluster.Dir, name string) error {
		return d.Start(ctx, name, progress(c))
	})
}

func stopCommand(o *options) *cobra.Command {
	return componentCommand(o, "stop", "Ask a component to end (SIGTERM); a node's pods go on", func(ctx context.Context, _ *cobra.Command, d cluster.Dir, name string) error {
		return d.Stop(ctx, name)
	})
}

func killCommand(o *options) *cobra.Command {
	return componentCommand(o, "kill", "End a component without warning (SIGKILL); a node's pods go on", func(ctx context.Context, _ *cobra.Command, d cluster.Dir, name string) error {
		return d.Kill(ctx, name)
	})
}

func freezeCommand(o *options) *cobra.Command {
	var withPods bool
	c := componentCommand(o, "freeze", "Freeze a component (SIGSTOP)", func(ctx context.Context, _ *cobra.Command, d cluster.Dir, name string) error {
		return d.Freeze(ctx, name, withPods)
	})
	c.Flags().BoolVar(&withPods, "with-pods", false, "freeze the node's pods too")
	return c
}

func thawCommand(o *options) *cobra.Command {
	return componentCommand(o, "thaw", "Let a frozen component, and a node's pods, go on (SIGCONT)", func(ctx context.Context, _ *cobra.Command, d cluster.Dir, name string) error {
		return d.Thaw(ctx, name)
	})
}

func componentCommand(o *options, use, short string, act func(context.Context, *cobra.Command, cluster.Dir, string) error) *cobra.Command {
	c := &cobra.Command{
		Use: use + " COMPONENT", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := o.dir()
			if err != nil {
				return err
			}
			ctx, cancel := o.context(c)
			defer cancel()
			return act(ctx, c, dir, args[0])
		},
	}
	withTimeout(o, c, time.Minute)
	return c
}

func addOutput(o *options, c *cobra.Command) {
	c.Flags().StringVarP(&o.output, "output", "o", "table", "table or json")
	c.PreRunE = func(*cobra.Command, []string) error {
		if o.output != "table" && o.output != "json" {
			return fmt.Errorf("--output %q: use table or json", o.output)
		}
		return nil
	}
}

func printJSON(c *cobra.Command, value any) error {
	encoder := json.NewEncoder(c.OutOrStdout())
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func printStatus(c *cobra.Command, s cluster.Status) {
	table(c, "COMPONENT\tSTATE\tPID\tMEMORY (RSS)\tMEMORY (PSS)", func(row func(...any)) {
		for _, p := range s.Components {
			row(p.Name, p.State, p.PID, mib(p.Memory.RSS), mib(p.Memory.PSS))
		}
		row("total", "", "", mib(s.Total.RSS), mib(s.Total.PSS))
	})
	fmt.Fprintf(c.OutOrStdout(), "\nAPI server  %s\nkubeconfig  %s\n", s.APIServer, s.Kubeconfig)
}

func table(c *cobra.Command, header string, rows func(row func(...any))) {
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 3, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, header)
	rows(func(cells ...any) {
		for i, cell := range cells {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, cell)
		}
		fmt.Fprintln(w)
	})
}

func mib(bytes int64) string { return fmt.Sprintf("%d MiB", bytes>>20) }
