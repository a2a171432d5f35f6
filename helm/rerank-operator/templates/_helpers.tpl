{{/* Prefix of every object's name. "rerank" is not repeated where the release is called so. */}}
{{- define "rerank.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default "rerank" .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Name of what belongs to one component; no rerank-operator-operator. Takes (list $ component). */}}
{{- define "rerank.componentName" -}}
{{- $fullname := include "rerank.fullname" (index . 0) -}}
{{- $suffix := printf "-%s" (index . 1) -}}
{{- $fullname | trimSuffix $suffix }}{{ $suffix -}}
{{- end -}}

{{/* Prefix of cluster-wide objects: two releases of one name may live in two namespaces. */}}
{{- define "rerank.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "rerank.fullname" .) -}}
{{- end -}}

{{/* Labels that never change: selectors are immutable. Takes (list $ component). */}}
{{- define "rerank.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of every object. Takes (list $ component); component "" for what belongs to the whole release. */}}
{{- define "rerank.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/part-of: rerank
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* registry/repository:tag@digest. Takes (list $ image). */}}
{{- define "rerank.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $image.registry }}{{ . }}/{{ end -}}
{{- $image.repository }}:{{ default $root.Chart.AppVersion $image.tag -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* Name of a component's service account. Takes (list $ component). */}}
{{- define "rerank.serviceAccountName" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $account := (index $root.Values $component).serviceAccount -}}
{{- default (include "rerank.componentName" .) $account.name -}}
{{- end -}}

{{/* Name of the headless Service by which the operator finds the gateways. */}}
{{- define "rerank.demandName" -}}
{{- include "rerank.fullname" . }}-demand
{{- end -}}

{{/* Name of the Service of the operator's page. */}}
{{- define "rerank.pageName" -}}
{{- include "rerank.fullname" . }}-page
{{- end -}}

{{/* Name of the Secret that the tokens of warm pods are derived from. */}}
{{- define "rerank.warmPoolSecret" -}}
{{- default (printf "%s-warm-pools" (include "rerank.fullname" .)) .Values.warmPools.existingSecret -}}
{{- end -}}

{{/* What goes before docs/runbooks in rules and dashboards. Empty: links hold the path of the runbook alone. */}}
{{- define "rerank.runbookBase" -}}
{{- with .Values.monitoring.rules.runbookUrl }}{{ . }}/{{ end -}}
{{- end -}}
